"""Networks that timm lacks; nothing here imports the rest of the package."""
