"""What both OpenAI APIs share: request fields, tools, response formats, parts of answers, and the list of models."""
