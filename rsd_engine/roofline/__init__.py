"""The least time that decoding can take, from sizes of models and rates of a device alone."""
