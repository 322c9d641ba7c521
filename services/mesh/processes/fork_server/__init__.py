"""Python processes that start with their imports done: a server that has imported them forks each one.

Importing torch, transformers, Ray and verl takes longer than a short training, and every process of a training does it.
A server (`server.py`) imports once what is slow; who needs a process sends its command, environment, folder and open
files over a socket (`client.py`), and gets the pid of a child that goes on as `python COMMAND` would. `ray_worker.py`
has Ray start its workers in this way. The server listens to no other user.

Linux only: SCM_RIGHTS, SO_PEERCRED, pidfd_open(2).
"""
