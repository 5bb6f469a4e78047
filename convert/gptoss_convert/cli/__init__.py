"""The converter's commands; the runtime's ``gptoss`` finds them through the entry-point group "gptoss.commands"."""
