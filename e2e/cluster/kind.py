"""The provider `kind`: Kubernetes in Docker, where a Docker engine runs."""
