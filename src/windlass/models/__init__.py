"""One file per architecture, each writing a program; strict reading of their configs."""
