"""Where the tests' index is in the app."""

HOME = "/features/tiny--model"
API = f"/api{HOME}"
