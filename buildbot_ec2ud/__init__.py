"""Build workers rented from EC2 for Buildbot: vanilla images, set up by user-data, gone after the build."""

__version__ = "0.1.0"
