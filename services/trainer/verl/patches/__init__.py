"""Changes to verl, TransferQueue and the models that verl loads, made when their modules are first imported."""
