"""One machine as a cluster: the control plane and each node in Linux namespaces of their own, every process a child of one."""
