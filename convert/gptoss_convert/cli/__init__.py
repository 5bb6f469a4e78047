"""The converter's commands, which the runtime's ``gptoss`` finds through the entry-point group "gptoss.commands"."""
