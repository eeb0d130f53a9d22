"""The lines that install Millrace with given images, to be pasted at the checkout's root. The e2e tests run what users are told to."""


def by_chart(*, operator: str, server: str) -> str:
    """The chart, with both images as NAME:TAG."""
    values = " ".join(f"{value}" for key, image in (("image", operator), ("serverImage", server)) for value in _values(key, image))
    return f"helm upgrade --install millrace charts/millrace -n millrace-system --create-namespace {values}"


def by_manifests(*, operator: str, server: str) -> str:
    """manifests/install.yaml, with both images in the place of the names that stand for them."""
    images = f"-e 's|millrace/operator:[^ ]*|{operator}|' -e 's|millrace/server:[^ ]*|{server}|'"
    return f"sed {images} manifests/install.yaml | kubectl apply --server-side -f -"


def _values(key: str, image: str) -> tuple[str, str]:
    repository, _, tag = image.rpartition(":")
    # As strings: a tag that happens to be all digits would else be a number, which the chart refuses.
    return f"--set-string {key}.repository={repository}", f"--set-string {key}.tag={tag}"
