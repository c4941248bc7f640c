"""What is reported of a model, each with n and a standard error."""
