"""The scoring server and its client."""

from rmjax.serving.client import AsyncClient as AsyncClient
from rmjax.serving.client import Client as Client
from rmjax.serving.client import ServerError as ServerError
