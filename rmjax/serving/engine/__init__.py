"""Request queue, batching, shared prefixes and offload to host memory; independent of models and transports."""
