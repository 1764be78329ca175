"""Facts: tables, views, names, contents, the journal, and what is garbage."""
