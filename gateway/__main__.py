"""`python -m gateway` is `image-gateway`."""

from gateway.cli import main

main()
