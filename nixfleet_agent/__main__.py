"""``python -m nixfleet_agent`` is ``nixfleet-agent``."""

import sys

from nixfleet_agent.cli import main

sys.exit(main())
