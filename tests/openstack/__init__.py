"""A real Keystone and a real Glance on loopback; README.md says how and why."""
