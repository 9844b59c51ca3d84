"""Clients for RL loops, over HTTP or gRPC; import neither JAX nor data libraries."""

from rmjax.serving.client.client import AsyncClient as AsyncClient
from rmjax.serving.client.client import Client as Client
from rmjax.serving.client.retries import ServerError as ServerError
