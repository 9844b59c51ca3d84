"""gRPC frontend: the Open Inference Protocol v2 service and the conversion of its tensors.

Only transport is here; requests are handled by the models in `rmjax.serving.services`.
"""
