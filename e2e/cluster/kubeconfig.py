"""The provider `kubeconfig`: a cluster of the user's own, only when named on purpose."""
