"""The page of `fourdiffusion app` as a Hugging Face space."""

from fourdiffusion.app import app
from fourdiffusion.settings import AppConfig

if __name__ == "__main__":
    app(AppConfig(output="runs", host="0.0.0.0", port=7860))
