"""This machine: files, output, programs, folders."""
