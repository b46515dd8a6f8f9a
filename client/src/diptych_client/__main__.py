"""`python -m diptych_client` is the command `diptych-client`."""

import sys

from diptych_client._cli import main

sys.exit(main())
