"""What a person is shown of each record, a file a record."""
