"""i-PI: a client for its sockets and shared memory, and a potential inside its process."""
