"""collector-cli, the admin's tool. Each command is a module that is loaded when it is run."""
