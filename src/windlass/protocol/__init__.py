"""The OpenAI wire types; pure data."""
