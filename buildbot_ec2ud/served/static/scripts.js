// The web UI asks each plugin for this file. This one has nothing to show.
