"""An engine in a child process, for servers: concurrent requests, crash isolation, and memory freed on unload."""
