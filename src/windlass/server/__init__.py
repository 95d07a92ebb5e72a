"""The HTTP server: OpenAI's interface over the engines, on FastAPI and uvicorn (the extra ``windlass[server]``)."""
