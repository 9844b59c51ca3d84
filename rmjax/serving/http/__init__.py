"""HTTP frontend: the REST form of the Open Inference Protocol v2, the APIs of other reward servers, and web pages.

Only transport is here; requests are handled by the models in `rmjax.serving.services`.
"""
