"""From a params file to an HTML report: the schema, the pipeline, provenance, figures, pages."""
