//! What the page calls.

use wasm_bindgen::prelude::{JsError, wasm_bindgen};

use crate::Trainer;

fn told(error: crate::Error) -> JsError {
    JsError::new(&error.to_string())
}

/// A model on the page's device.
#[wasm_bindgen]
pub struct Page(Trainer);

#[wasm_bindgen]
impl Page {
    /// Opens the device and compiles the program of a recipe.
    ///
    /// # Errors
    /// Without WebGPU.
    pub async fn open(recipe: String) -> Result<Page, JsError> {
        Ok(Self(Trainer::open(&recipe).await.map_err(told)?))
    }

    /// The device.
    pub fn device(&self) -> String {
        self.0.device().to_owned()
    }

    /// Takes steps; gives their losses in nats.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn train(&mut self, steps: usize) -> Result<Vec<f32>, JsError> {
        self.0.train(steps).await.map_err(told)
    }

    /// Goes on with a text.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn write(&mut self, prompt: String, count: usize) -> Result<String, JsError> {
        self.0.write(&prompt, count).await.map_err(told)
    }
}
