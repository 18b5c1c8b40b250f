import os


# before CUDA begins: without it matrix products may add up in another order each time
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
