"""The scoring server: engine, models, gRPC and HTTP frontends, and its Python client."""

from rmjax.serving.client import AsyncClient as AsyncClient
from rmjax.serving.client import Client as Client
from rmjax.serving.client import ServerError as ServerError
