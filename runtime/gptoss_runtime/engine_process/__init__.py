"""An engine in a child process, for servers: fair scheduling, isolated crashes, memory returned on unload."""
