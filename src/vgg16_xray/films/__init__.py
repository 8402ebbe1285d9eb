"""What a radiograph is, before any learning."""
