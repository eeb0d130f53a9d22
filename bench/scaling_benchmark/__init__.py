"""How soon a load step is served by one more replica: our autoscaler and a plain HorizontalPodAutoscaler, on the same cluster."""
