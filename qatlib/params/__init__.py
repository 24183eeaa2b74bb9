"""What a params file may say, and how it is read."""
