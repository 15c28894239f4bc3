"""From a request in OpenAI's words to a plan for one provider's offer. Pure: values in, values out."""
