"""The distribution: metadata, what comes along, extras, entry points."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
version = re.search(r'__version__ = "([^"]+)"', (here / "buildbot_ec2ud" / "__init__.py").read_text())[1]

# The demo and the tests: an EC2 and workers on this machine. Of moto, private names are used.
embedded = ["moto[ec2,server]>=5.2.5,<5.3", "buildbot-worker>=4.3"]


class BuildWithTemplate(build_py):
    """Takes the master template along, which stands at the top of the source tree, where people look for it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "buildbot_ec2ud", "master_template")
            self.copy_tree(str(here / "master_template"), str(target))


setup(
    name="buildbot-ec2ud",
    version=version,
    description="Build workers rented from EC2 for Buildbot: vanilla images, set up by user-data, gone after the build",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="GPL-2.0-or-later",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Framework :: Buildbot",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Software Development :: Build Tools",
        "Typing :: Typed",
    ],
    keywords="buildbot ec2 aws worker latent user-data ci twisted",
    packages=find_packages(include=["buildbot_ec2ud", "buildbot_ec2ud.*"]),
    package_dir={"": "."},
    package_data={
        "buildbot_ec2ud": ["py.typed"],
        "buildbot_ec2ud.userdata": ["*.sh", "*.ps1", "bootstrap/*.sh", "bootstrap/*.ps1"],
        "buildbot_ec2ud.served": ["static/*"],
    },
    cmdclass={"build_py": BuildWithTemplate},
    python_requires=">=3.11",
    install_requires=[
        "buildbot>=4.3",
        "buildbot-www>=4.3",
        "buildbot-worker>=4.3",  # the template's janitor is a worker inside the master
        "txaws>=0.5.0",
        "twisted[tls]>=26.4",
        "pyopenssl",
        "service_identity",
        "botocore>=1.40,<2",
        "lxml>=5",
        "attrs>=23",
    ],
    extras_require={
        "embedded": embedded,
        "bench": [*embedded, "boto3", "matplotlib>=3.8"],
        "test": [
            *embedded,
            *(
                "pytest>=8",
                "pytest-xdist>=3",
                "hypothesis>=6",
                "boto3",
                "coverage>=7",
                "build",
                "ruff",
                "psycopg2-binary",
            ),
            *("tree-sitter", "tree-sitter-powershell"),
        ],
    },
    entry_points={
        "console_scripts": ["buildbot-ec2ud = buildbot_ec2ud.cli:main"],
        "buildbot.worker": ["EC2UserDataLatentWorker = buildbot_ec2ud.worker:EC2UserDataLatentWorker"],
        "buildbot.util": ["ec2_fleet = buildbot_ec2ud.worker:ec2_fleet"],
        "buildbot.www": ["ec2_scripts = buildbot_ec2ud.served:plugin"],
    },
)
