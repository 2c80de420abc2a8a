"""What layers carry from token to token beside the KV cache: convolutions' last inputs, recurrent states."""
