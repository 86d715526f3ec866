package postern_test

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"

	"postern/catalog"
)

// A code in the code is a constant of the catalogue, so that one that does not exist
// does not compile.
func TestCodesAreConstantsOfTheCatalogue(t *testing.T) {
	packages, positions := module(t)
	for name, pkg := range packages {
		if name == "catalog" {
			continue
		}
		for _, file := range pkg.files {
			ast.Inspect(file, func(node ast.Node) bool {
				if literal := codeLiteral(node); literal != nil {
					t.Errorf("%s: code %s is not a constant of the catalogue", positions.Position(literal.Pos()), literal.Value)
				}
				return true
			})
		}
	}
}

// codeLiteral returns the string literal that stands where a code belongs: the first
// argument of catalog.Errorf, Wrap and Lookup, a conversion, the field of an Error.
func codeLiteral(node ast.Node) *ast.BasicLit {
	switch n := node.(type) {
	case *ast.CallExpr:
		if len(n.Args) > 0 && slices.Contains([]string{"Errorf", "Wrap", "Lookup", "Code"}, ofCatalog(n.Fun)) {
			return stringLiteral(n.Args[0])
		}
	case *ast.CompositeLit:
		if ofCatalog(n.Type) == "Error" && len(n.Elts) > 0 {
			if pair, ok := n.Elts[0].(*ast.KeyValueExpr); ok {
				return stringLiteral(pair.Value)
			}
			return stringLiteral(n.Elts[0])
		}
	}
	return nil
}

// ofCatalog returns X when the expression is catalog.X, otherwise "".
func ofCatalog(expression ast.Expr) string {
	selector, ok := expression.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if pkg, ok := selector.X.(*ast.Ident); !ok || pkg.Name != "catalog" {
		return ""
	}
	return selector.Sel.Name
}

func stringLiteral(expression ast.Expr) *ast.BasicLit {
	literal, ok := expression.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return nil
	}
	return literal
}

// An entry that nothing can produce would send a reader looking for it. Rows of the
// original product's documents (E) are explained whether we produce them or not.
func TestEveryCodeIsUsed(t *testing.T) {
	packages, _ := module(t)
	used := map[string]bool{"InternalError": true} // what an error without a code is shown as
	for _, pkg := range packages {
		for _, file := range pkg.files {
			ast.Inspect(file, func(node ast.Node) bool {
				if expression, ok := node.(ast.Expr); ok {
					used[ofCatalog(expression)] = true
				}
				return true
			})
		}
	}
	for _, entry := range catalog.All() {
		if strings.HasPrefix(string(entry.Code), "P") && !used[entry.Name] {
			t.Errorf("%s %s is in the catalogue and nowhere in the code", entry.Code, entry.Name)
		}
	}
}
