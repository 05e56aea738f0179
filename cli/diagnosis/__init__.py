"""What `godwit doctor` looks at, one module for each field. Looking and judging are apart: what is judged are plain values."""
