"""Build and installation of nixfleet-agent."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (HERE / "nixfleet_agent" / "__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None, "nixfleet_agent/__init__.py has no __version__ line"

setup(
    name="nixfleet-agent",
    version=VERSION.group(1),
    description="The host agent of a NixOS fleet: verifies signed releases, activates them, and takes back what fails",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    package_dir={"": "."},  # makes an editable installation a plain path entry, not an import hook
    packages=find_packages(include=["nixfleet_agent", "nixfleet_agent.*"]),
    package_data={
        # conf is a symbolic link to the folder at the top: one set of files for operators and for the program.
        "nixfleet_agent": [
            "py.typed",
            "conf/*.toml",
            "conf/scenarios/*.toml",
            "conf/schemas/*.json",
            "conf/schemas/wire/*.json",
        ],
        "nixfleet_agent.activation": ["scripts/*.sh"],
        "nixfleet_agent.demo": ["*.sh"],
        "nixfleet_agent.local_cp": ["*.html", "*.sql"],
    },
    install_requires=[
        "requests>=2.32,<3",
        # Below requests its pools and connections are subclassed, for deadlines and for TLS by pyOpenSSL: 2.0.2 is the
        # oldest that the tests of the network and of the probes ran with.
        "urllib3>=2.0.2,<3",
        "pyopenssl>=24.3",
        "cryptography>=43",
        "jsonschema>=4.18,<5",
        "schedule>=1.2.2,<2",
        "python-json-logger>=3.1,<5",
        "rfc8785>=0.1.4,<0.2",
        "prometheus-client>=0.20,<1",
    ],
    extras_require={
        "demo": ["rich>=13"],
        "dev": ["hypothesis>=6.100", "coverage>=7.4", "ruff>=0.6", "mypy>=1.10", "types-requests>=2.32", "bandit>=1.8"],
    },
    entry_points={"console_scripts": ["nixfleet-agent = nixfleet_agent.cli:main"]},
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: System :: Systems Administration",
        "Typing :: Typed",
    ],
)
