"""Pictures of a store: the report page (`featurestore inspect`) and the paper's figures (`featurestore figures`)."""
