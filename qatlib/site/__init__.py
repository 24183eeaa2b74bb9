"""Pages: notebooks and tables as HTML."""
