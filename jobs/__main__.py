"""`python -m jobs VERB` is `cmasd VERB`."""

import sys

from jobs.main import main

sys.exit(main())
