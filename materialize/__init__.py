"""Views: farms, copies, overlay mounts, the mount table, and reading back what was written."""
