"""`python -m fourdiffusion`, and with it `accelerate launch -m fourdiffusion` and `torchrun -m fourdiffusion`."""

import sys

from fourdiffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
