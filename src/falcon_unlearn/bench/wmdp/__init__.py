"""The WMDP benchmark."""
