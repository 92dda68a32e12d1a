"""From a conversation to the text that the model continues."""
